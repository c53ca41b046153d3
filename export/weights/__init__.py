"""The LLM's weights for decoders that are not ONNX graphs: one file each, in the layout its kernels use."""
