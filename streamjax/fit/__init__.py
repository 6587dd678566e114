"""Pod check before the pod: what a recipe needs of one, and how fast it would be there.

from streamjax.fit import fit

report = fit("streamo_qwen25vl_7b", "v5p:4x4x4", overrides=["mesh.fsdp=16", "mesh.tensor=4"])
print(report.text())
"""

from streamjax.fit.report import Report
from streamjax.fit.run import CompileError, fit

__all__ = ["CompileError", "Report", "fit"]
