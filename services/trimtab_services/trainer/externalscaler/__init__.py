"""Stubs of KEDA's external scaler protocol, made by `protos/generate.sh`."""
