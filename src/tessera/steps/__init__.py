"""What a stage does where loading, calling and saving is not all of it: one file or folder, named after the stage. Contracts
only: no plug-in is known here by name, except to the report, which must choose what a reader sees first."""
