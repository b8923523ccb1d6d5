"""Snakemake with its arguments, asking SLURM every second how its jobs are, whatever the profile says.

The SLURM plugin asks after 15 s, then 25, 35 ... up to 180: right for a cluster that others use too, minutes lost in a test.
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep_a_second(executor: RemoteExecutor) -> None:
    await asyncio.sleep(1)


RemoteExecutor.sleep = sleep_a_second
main()
