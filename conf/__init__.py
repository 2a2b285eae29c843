"""Configuration groups; installed as `dfkd.conf`."""
