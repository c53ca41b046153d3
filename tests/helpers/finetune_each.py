"""`salmonrun finetune --cfg-path` of each argument, one after the other: to be launched in several processes."""

import sys

from salmonrun.__main__ import main

if __name__ == "__main__":
    sys.exit(max(main(["finetune", "--cfg-path", config]) for config in sys.argv[1:]))
