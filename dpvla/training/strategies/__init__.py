"""How an update is spread over devices and processes, behind the contract of ``strategy``."""
