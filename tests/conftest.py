import os

# Models this small only lose by threads, and two processes that each use every core lose much more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
