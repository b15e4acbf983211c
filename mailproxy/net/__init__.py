from mailproxy import compiled

compiled.use()
