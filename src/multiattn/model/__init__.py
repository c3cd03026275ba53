"""The multi-attention network and what trains it: see README.md. Equations: Zhao et al., arXiv:2103.02406v3."""
