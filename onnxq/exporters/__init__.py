"""From PyTorch and Hugging Face folders to ONNX, through optimum or torch.onnx; no network is reached."""
