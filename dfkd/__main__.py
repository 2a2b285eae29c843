"""`python -m dfkd`: the same as the console script."""

from dfkd.app import main

main()
