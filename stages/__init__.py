"""The pipeline, one short file a stage. Python runs this file before a stage imports anything else."""

from excise.plumbing.process import begin

begin()
