"""Help for the authors of methods: small models to try one on."""
