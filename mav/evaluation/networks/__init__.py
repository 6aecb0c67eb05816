"""The networks that published video metrics are measured with, as plain torch modules that load the published weights."""
