"""A study on a Slurm cluster, by dask-jobqueue: python examples/slurm-study.py STUDY

Start it on a machine that may submit jobs and that the compute nodes can reach, in tmux or the like: it waits until the study has
ended, and with it end the workers. Each worker is a Slurm job that does one run of the study at a time. Set the values in capitals
to those of your cluster; the scheme is the same for PBS, SGE or LSF, with another class of dask-jobqueue.
"""

import sys

from dask_jobqueue import SLURMCluster

from tessera.studies.__main__ import main

JOBS = 8  # runs at a time
CORES = 8  # of a job; runs compute on as many threads
PARTITION, ACCOUNT = "gpu", None
TIME = "24:00:00"  # more than the longest run takes: when a job's time is over its run begins anew in another job
NETWORK = None  # the interface that compute nodes reach, such as "ib0"; None: the default one


if __name__ == "__main__":
    (study,) = sys.argv[1:]
    with SLURMCluster(
        queue=PARTITION,
        account=ACCOUNT,
        walltime=TIME,
        processes=1,  # one worker in each job
        cores=1,  # Dask's threads, of which a run needs one
        job_cpu=CORES,
        memory="32GB",
        job_extra_directives=["--gpus=1"],
        local_directory="/tmp",  # where runs work: a disk of the node
        interface=NETWORK,
        # Jobs start the Python that runs this script, so its environment must be on a file system that the nodes have.
    ) as cluster:
        cluster.scale(jobs=JOBS)  # Slurm may take its time; runs begin as jobs do
        sys.exit(main([study, "--on", cluster.scheduler_address, "--runtime", f"threads={CORES}"]))
