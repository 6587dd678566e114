"""What a measured number has to be read with: processor, cores it could use, versions, date."""

import datetime
import os
from importlib.metadata import version
from pathlib import Path


def describe() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "cores used": len(os.sched_getaffinity(0)),
        "load at the end": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": version("jax"),
    }
