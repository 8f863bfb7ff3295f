OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 0 --tb=short "$@" 2>&1 | grep -v "^Failed to load\|^W1129" 
