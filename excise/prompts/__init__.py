"""Where prompts come from, and how they become chats, the same for measuring and for judging."""
