"""Settings of a run beside one another on hosts of namespaces with a link of a known rate."""
