"""Stubs of the Open Inference Protocol, made by `protos/generate.sh`."""
