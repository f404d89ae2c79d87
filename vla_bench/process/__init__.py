"""The command as processes: who `watch`es whom, the code of others, the screen, the working folder."""
