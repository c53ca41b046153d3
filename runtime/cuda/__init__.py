"""What there is of CUDA on this machine, asked of the driver and ONNX Runtime, which compute nothing for it."""
