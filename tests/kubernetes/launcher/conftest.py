from launching import admin, admin_kubeconfig, namespace

__all__ = ["admin", "admin_kubeconfig", "namespace"]  # fixtures
