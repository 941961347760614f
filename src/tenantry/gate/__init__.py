"""The six steps every action takes: identify, authorize, begin, credential, perform, settle."""
