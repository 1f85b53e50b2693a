"""Graph edits: plan what to quantize, quantize it, and lower the result to what a runtime understands."""
