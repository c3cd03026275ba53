"""What a machine without network needs, in one folder.

bundle.py        code, weights, scoring rule, wheels and notebook, put together
half_weights.py  checkpoints in float16, and what that changes
wheels.py        wheels of what an image lacks
"""
