"""A sink that keeps what it is given."""


class Kept:
    def __init__(self):
        self.records = []

    def write(self, record):
        self.records.append(record)

    def close(self):
        pass
