"""`python -m mpp NAME`: the same as the console command `mpp`."""

from mpp.console import main

if __name__ == "__main__":
    main()
