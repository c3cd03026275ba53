"""The multi-attention network and its losses: see README.md. Equations: Zhao et al., arXiv:2103.02406v3."""
