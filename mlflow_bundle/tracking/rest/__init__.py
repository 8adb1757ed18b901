"""Reading from and writing to a tracking server, over plain HTTP."""
