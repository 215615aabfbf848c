import os

from tessera.runtime import process

process.prepare()  # before torch is loaded, as the stages do
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # likewise: above all levels of torch's profiler, which logs to stderr
