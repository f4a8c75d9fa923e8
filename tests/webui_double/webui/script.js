// What of the WebUI's own scripts the extension relies on.
window.gradioApp = () => document.querySelector('gradio-app') || document;
window.switch_to_txt2img = () => {
    const tabs = document.querySelector('#tabs');
    const button = Array.from(tabs.querySelectorAll('button')).find((b) => b.textContent.trim() === 'txt2img' && b.offsetParent);
    button.click();
};
