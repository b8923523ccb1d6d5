"""Pages that open in a browser without internet: one file each, with its styles, scripts and data inside."""
