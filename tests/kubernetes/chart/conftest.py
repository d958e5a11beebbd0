from releases import kubeconfig, place

__all__ = ["kubeconfig", "place"]  # fixtures
