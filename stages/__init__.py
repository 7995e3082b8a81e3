"""The pipeline, one short file a stage; the folders beside them are the rooms that the stages are made of."""
