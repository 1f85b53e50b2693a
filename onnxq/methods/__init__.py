"""The mathematics of quantization: arrays in, arrays out, one file a method."""
