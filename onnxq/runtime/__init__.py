"""Running a model in onnxruntime: sessions, what they take, how weights run, and text from a language model."""
