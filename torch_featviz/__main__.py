"""`python -m torch_featviz` is `featviz`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
