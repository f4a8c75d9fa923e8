// What of the WebUI's own scripts the extension relies on.
window.gradioApp = () => document.querySelector('gradio-app') || document;
window.switch_to_txt2img = () => {
    const buttons = Array.from(document.querySelectorAll('#tabs button'));
    // Newer gradio has a second one of each, to measure with.
    buttons.filter((b) => b.textContent.trim() === 'txt2img' && b.offsetParent).forEach((b) => b.click());
};
