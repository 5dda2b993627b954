"""The rules of cleaning, one family a module; `data.clean` applies them in order."""
