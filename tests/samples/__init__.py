"""The samples of each op, one module per op with its `ENTRIES`; tests/registry.py finds them."""
