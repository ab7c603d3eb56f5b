"""Speed: every case runs this code and a plain baseline in turn, in one process, with the same weights and inputs."""
