"""torchrun on one machine, whose exit code tells what the first rank died of. torchrun itself returns 1 whatever happened.

python -m nanochat.jobs.torchrun 8 workflow/scripts/train.py --help
"""

import signal
import sys

from nanochat.jobs.attempt import die_with_launcher


def main() -> None:
    ranks, *program = sys.argv[1:]
    die_with_launcher()
    # SLURM may signal every process of a job; the ranks see to it themselves (nanochat.jobs.attempt). A handler, as ranks
    # inherit an ignored signal, but not a handler
    signal.signal(signal.SIGTERM, lambda *_: None)

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(["--standalone", f"--nproc-per-node={ranks}", "--signals-to-handle=SIGQUIT", *program]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # a killed rank makes the others fail as well: it is the cause
        code = -signal.SIGKILL if -signal.SIGKILL in codes else error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    main()
