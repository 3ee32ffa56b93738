"""The version of neft."""

VERSION = "0.1.0"
