"""The gRPC server: convert, call, convert. `main.py` alone picks a store, a clock and a registry of metrics."""
