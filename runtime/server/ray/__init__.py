"""More than one machine: replicas of the server on Ray Serve, files by Ray Data. Nothing else imports Ray."""
