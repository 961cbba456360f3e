"""The Ray cluster: one at an address, or one of this machine alone, with enough cores for the workers."""

import os
import signal
import socket
import threading
from types import ModuleType

from sector.engine.errors import InputError, first_line
from sector.engine.threads import num_cores

# Set before Ray is imported: Ray reports no usage, collects no metrics, and leaves CUDA_VISIBLE_DEVICES alone.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LEAST_STORE_BYTES = 1 << 28
# How either side of HTTP/2 begins: the preface, for the caller, and settings, of which these are none.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_ANSWER_SECONDS = 10.0


def import_ray() -> ModuleType:
    """Return the module `ray`. Raise InputError if it is not installed."""
    os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    try:
        import ray
    except ImportError as error:
        raise InputError("several workers need Ray; pip install 'sector-lm[ray]'") from error
    return ray


def open_cluster(ray: ModuleType, count: int, num_bytes: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine.

    ray: the module.
    count: workers that will start there.
    num_bytes: size of the weights.
    """
    # Ray installs a handler for SIGTERM; the previous one is put back.
    handler = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _join(ray, address, count)
    else:
        ray.init(
            address="local",
            num_cpus=count,
            object_store_memory=max(_LEAST_STORE_BYTES, 4 * num_bytes),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _join(ray: ModuleType, address: str, count: int) -> None:
    """Join the cluster at an address. Raise InputError if none answers, or if it has too few CPUs."""
    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({first_line(error)}); unset it, or start one there"
        ) from error
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < count:
        ray.shutdown()
        raise InputError(
            f"the cluster at RAY_ADDRESS={address} has {cpus} CPUs, too few for --workers {count}; "
            f"ask for {cpus} at most"
        )


def check_cores(count: int) -> None:
    """Raise InputError if this machine has fewer cores than workers; a cluster is checked when it is joined."""
    cores = num_cores()
    if count > cores and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            f"--workers {count}, but this machine has {cores} cores to give; ask for {cores} at most, or name a Ray "
            "cluster in RAY_ADDRESS"
        )


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError unless HOST:PORT answers in HTTP/2, as Ray does. Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    # Under TLS the first word is another one, and addresses of other forms are Ray's to read.
    if not colon or "://" in host or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
        connection.sendall(_HTTP2_HELLO)
        if connection.recv(4)[3:] != _HTTP2_SETTINGS:
            raise OSError("what listens there is no Ray")
