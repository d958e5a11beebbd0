"""Where runs work: processes of this machine, or Jobs of a Kubernetes cluster.

- `base`: what the service needs of a launcher, and nothing more.
- `local`: a run is a process, which starts the others that it trains with.
- `kubernetes`: a run is a Job, made from a `template`; `job` follows one, `pod_state` says how it ended and
  why a pod is not working, `pod_log` copies its log; `cluster` holds the calls that all of them make.
"""

from __future__ import annotations

from trimtab_services.trainer.config import KubernetesLauncherConfig, TrainerServiceConfig
from trimtab_services.trainer.launchers.base import Ending, Launcher, Place, Removed, Work
from trimtab_services.trainer.launchers.local import LocalLauncher

__all__ = ["Ending", "Launcher", "Place", "Removed", "Work", "make_launcher"]


async def make_launcher(config: TrainerServiceConfig, report_to: str) -> Launcher:
    """The launcher that the configuration asks for; the Kubernetes client is imported only where it is used.

    Args:
        config: of the service.
        report_to: gRPC address of the service, for runs on this machine.

    Raises:
        ConfigError: the Kubernetes client is not installed, no cluster is known, or the template is wrong.
    """
    if isinstance(config.launcher, KubernetesLauncherConfig):
        from trimtab_services.trainer.launchers.kubernetes import KubernetesLauncher

        return await KubernetesLauncher.connect(config.launcher)
    return LocalLauncher(
        report_to, config.launcher.processes, config.endpoints_file, config.token_file, config.report_tls
    )
