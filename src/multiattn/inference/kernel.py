"""An error for copies of the notebook made when the submission run still was `multiattn.inference.kernel`."""

raise ImportError(
    "multiattn.inference.kernel is multiattn.inference.submit now, and this notebook is older than the code beside it. "
    "Take notebooks/inference.ipynb of the same version, or make the bundle anew with `multiattn bundle`."
)
