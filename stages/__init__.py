"""The pipeline, one short file for each stage. Python runs this file before a stage imports anything else."""

from excise.plumbing.process import begin

begin()
