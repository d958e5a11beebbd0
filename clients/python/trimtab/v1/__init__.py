"""Generated stubs of `trimtab.v1`: `make protos` writes them, a test compares them with the protos."""
