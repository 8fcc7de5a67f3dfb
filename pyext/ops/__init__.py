"""The ops: one module each, with the torch-like function, its fake kernel and its vmap rule."""
