"""The operators in plain PyTorch, one module each: for installs without the extension and devices without a kernel."""
