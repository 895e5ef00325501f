"""How fast and how small qlib's layers are beside other ways to run a linear layer; `python -m bench` measures it."""
